"""What the chapters draw, tabulate and begin with."""
