"""The servers that the tests talk to: real ones, each a program of its own, and ours that check or fail as asked.

`fixtures.py` has a fixture for each; tests/conftest.py loads it. All listen on the loopback interface only.
"""
