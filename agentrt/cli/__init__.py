"""The command line: `agentrt run`, `explain`, `check`, `plugins`, `models`, `completion`. One file per command."""
