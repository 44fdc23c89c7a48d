"""The Python engine: one package per stage, tables in and tables out."""
