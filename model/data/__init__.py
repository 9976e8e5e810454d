"""Reading text files, and making corpora of them."""
