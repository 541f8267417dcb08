"""Where the images of a stream lie: embedded scenes, local files, the Hub."""
