"""Image folders: file listings, sidecar captions, tables, and the paths of the images that rows name."""
