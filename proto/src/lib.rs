//! The gRPC contracts: agent to proxy, observer. The sources in `proto/` say what each means.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::large_enum_variant)]

/// `weft.v1`
pub mod v1 {
    tonic::include_proto!("weft.v1");
}
