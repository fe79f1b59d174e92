use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/weft/v1/proxy.proto", "proto/weft/v1/observer.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
