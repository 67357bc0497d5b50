"""The exact engine: layers computed strip by strip with the statistics and the attention of the whole image."""
