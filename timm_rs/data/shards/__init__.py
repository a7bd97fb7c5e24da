"""Images in tar shards as webdataset and timm's `wds/` have them: packing them, and reading them at any index.

A shard is a plain tar with two members per sample, KEY.jpg (or png, webp) and KEY.cls, the class index in digits. An
index of where each image lies is read once from the tar headers and kept beside the shards, so an image costs one read.
"""
