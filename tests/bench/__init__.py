"""How fast it is: ratios against the alternatives, taken in one run on one machine. `make bench`."""
