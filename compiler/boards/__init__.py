"""Provide boards: named machines that compiled models are deployed to, real ones or QEMU.

`config` knows their names, `parts` fetches what QEMU needs, `qemu` starts and stops, `rpc` talks
to a board over TVM's RPC, `deploy` brings a bundle there and proves that it runs.
"""
