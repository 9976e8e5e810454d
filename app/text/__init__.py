"""Text as it arrives and as it is counted. Pure."""
