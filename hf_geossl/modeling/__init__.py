"""Models and objectives: the files of this flat folder travel to the Hub with the weights and import nothing else of ours."""
