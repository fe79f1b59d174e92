//! The gRPC contracts: agent to proxy, observer, CA. The sources in `proto/` say what each means.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::large_enum_variant)]

/// `weft.v1`
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// `istio.v1.auth`: Istio's certificate service.
pub mod istio {
    tonic::include_proto!("istio.v1.auth");
}
