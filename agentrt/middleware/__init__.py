"""The stages of the pipeline, one file each; `defaults` holds the default pipelines."""
