"""Measurements of the paper's claims about gates and speed, with this code on this machine."""
