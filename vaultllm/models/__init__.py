"""Language models behind one small interface: one file per kind of model.

Importing this package imports no model library; each module imports its own inside its functions.
"""
