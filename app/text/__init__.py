"""Text as it arrives, is shown and is counted. Pure functions and classes."""
