//! Manifests of every dialect, read into resources of the mesh.
