"""`python -m fusemix`."""

from fusemix.cli import main

main()
