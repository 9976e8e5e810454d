"""What the paper claims of gates and of speed, measured with this code on this machine."""
