use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_back_as_they_were_sent() {
    let mesh = Mesh::new().await;
    let listener = TcpListener::bind((mesh.server, 8080)).await.unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = socket.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let mut socket = mesh.connect(8080).await;
    let source = socket.local_addr().unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (mut reader, mut writer) = socket.split();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    let proven = mesh.nodes[1].records.sources.lock().unwrap()[0];
    assert_eq!(proven.source, endpoint(source));
    assert_eq!(proven.destination, endpoint((mesh.server, 8080).into()));
}
