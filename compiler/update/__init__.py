"""Publish bundles, and keep machines on the newest that works.

`repository.py` writes a folder that any web server serves: metadata of The Update Framework
(theupdateframework.io), what is in each release, and its bytes in chunks. `client.py` reads it and
refuses what is not authentic; `agent.py` installs, tests, switches and goes back on a board;
`coordinator.py` hears how it went and stops a release that fails.
"""
