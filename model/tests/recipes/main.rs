//! Policies as the specifications and their documentation have them, and what they must come
//! to: by the evaluator, and by the tables of both nodes.

mod cilium;
mod istio;
mod kubernetes;
mod town;
mod weft;
