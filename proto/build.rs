use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "proto/weft/v1/proxy.proto",
        "proto/weft/v1/observer.proto",
        "proto/weft/v1/ca.proto",
        "proto/weft/v1/control.proto",
        "proto/istio/v1/auth/ca.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // What tools print as JSON. Nothing of proxy.proto: it carries keys.
    let mut builder = tonic_prost_build::configure();
    for message in
        ["Peer", "Flow", "Rule", "StatusResponse", "MapUse", "Program", "ExplainResponse", "Step"]
    {
        builder = builder.type_attribute(
            format!("weft.v1.{message}"),
            "#[derive(::serde::Serialize, ::serde::Deserialize)] #[serde(default)]",
        );
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
