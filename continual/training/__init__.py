"""Train one delta, or several jointly, on a frozen backbone; resume to the bit."""
