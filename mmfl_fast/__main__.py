"""``python -m mmfl_fast`` is the command line."""

from mmfl_fast.cli import main

main()
