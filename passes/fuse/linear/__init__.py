"""Constant scales and shifts go into the layers around them; layers are joined."""
