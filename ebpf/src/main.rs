//! The eBPF programs of Weft. One module per group of hooks, and below them what they share.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod bytes;
mod connect;
mod connection;
mod context;
mod datagram;
mod flow;
mod fragment;
mod getpeername;
mod identity;
mod interface;
mod judging;
mod lagging;
mod leaving;
mod maps;
mod packet;
mod pod_packet;
mod service;
mod sk_msg;
mod sock_ops;
mod sockopt;
mod tables;
mod trial;
mod udp;
mod verdict;

/// The helpers that the programs use are for programs under the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}
