"""`preceptor doctor`: what is installed and usable on this machine, and the command that mends what is not."""
