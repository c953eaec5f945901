"""Uploads of Xet clients: their xorbs are stored, and a shard makes ordinary files of them; see docs/adr/0035.

    access token → xorbs (each with its session's URL) → shard → files of the client's upload → commit

`access_tokens` says who sends a request, `sessions` what was sent for whom, `xorbs` and `files` do the work. Only the
files outlast the shard, and a commit treats them as files that came by Git LFS.
"""
