"""The offline side: architecture, tokenizers, training, evaluation and export to a bundle."""
