"""What any such project needs, and nothing of the paper: errors, files, the loop, seeds."""
