"""Records: schemas, shards, manifests, file formats. Every stage stands on this; it knows no stage."""
