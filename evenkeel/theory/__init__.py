"""The theory as closed forms that the tests hold against simulation: one file a paper, and one of the repairs."""
