"""`python -m agentrt` is the command `agentrt`."""

from agentrt.cli.main import main

main()
