"""The bodies of Xet uploads: chunks, the xorbs that hold them, and the shards that say how files are made of them.

    chunk    up to 128 KiB of a file; its hash is a keyed BLAKE3
    xorb     up to 64 MiB of chunks, each packed by itself; its hash is the root of a tree over those of its chunks
    shard    for each file its SHA-256 and its segments: runs of chunks of a xorb

A hash is 32 bytes. As text its four groups of 8 bytes are numbers in hex, so the bytes of each group are reversed; the
SHA-256 of a file in a shard is stored that way, too. Everything here is read as hostile input: each length is checked
before it is used, and nothing is unpacked beyond what its header declares.
"""
