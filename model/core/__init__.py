"""What serving shares with training: configuration, tokenizer, the graph's interface, bundles."""
