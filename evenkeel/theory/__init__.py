"""The papers' theory, one file a paper, as closed forms that the tests hold against simulation."""
