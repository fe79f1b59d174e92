use anyhow::Result;
use rustix::process::{WaitOptions, wait};

use crate::system;

/// Waits to be told to end. As the first process of a pod whose containers share their process
/// ids, it takes leave of processes whose parents have died.
pub fn pause() -> Result<()> {
    let signals = system::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD])?;
    loop {
        match system::await_signal(&signals)? {
            libc::SIGCHLD => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            _ => return Ok(()),
        }
    }
}
