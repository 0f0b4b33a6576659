"""Builds and updates an index: its pictures, their fields, and which rows a build adds and deletes."""
