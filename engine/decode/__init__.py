"""The decode stage: triplets whose every name is real, or labels, from any model that `train` wrote."""
