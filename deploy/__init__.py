"""What starts iotflow and the servers around it."""
