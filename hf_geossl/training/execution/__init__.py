"""How a step runs on its device: what is compiled, and when the host waits."""
