//! The reference evaluator: what the compiled tables must say.
