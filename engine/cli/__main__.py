"""``python -m obverse.engine.cli``: the command without the installed script."""

from obverse.engine.cli.main import main

main()
