"""The train stage: an extractor or a classifier from weighted rows, killed and resumed without a trace."""
