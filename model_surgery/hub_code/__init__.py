"""Code that leaves with an exported model: transformers classes of the published DroPE format.

The two modules import nothing of this project: they are copied verbatim into the folders of exported models.
"""
