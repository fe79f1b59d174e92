/// How much each direction of a tunnel's connections may have under way to a reader that does not
/// read. It shrinks as connections become many, so that what stalled readers can make the proxy
/// hold is bounded (by 64 MiB, 128 MiB, and then 64 KiB per connection), without a window of the
/// whole tunnel, on which connections would wait for each other.
pub(crate) struct StreamWindow(u32);

impl StreamWindow {
    /// Of a tunnel with few connections.
    pub(crate) const WIDEST: u32 = 1 << 20;

    pub(crate) fn new() -> Self {
        Self(Self::WIDEST)
    }

    /// Sets the window for a number of connections, if it is another than before. `set` may fail
    /// while the peer has not acknowledged the last one; it is tried again the next time.
    pub(crate) fn follow<E>(&mut self, connections: usize, set: impl FnOnce(u32) -> Result<(), E>) {
        let fitting = Self::fitting(connections);
        // Wider only when far from the border, so that it does not go to and fro.
        let wanted = if fitting > self.0 { Self::fitting(connections * 2) } else { fitting };
        if wanted != self.0 && set(wanted).is_ok() {
            self.0 = wanted;
        }
    }

    fn fitting(connections: usize) -> u32 {
        match connections {
            0..=64 => Self::WIDEST,
            65..=512 => 256 << 10,
            _ => 64 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_number_of_connections() {
        let mut window = StreamWindow::new();
        let mut follow = |connections, acknowledged| {
            let mut asked = None;
            window.follow(connections, |size| {
                asked = Some(size);
                if acknowledged { Ok(()) } else { Err(()) }
            });
            asked
        };
        assert_eq!(follow(64, true), None);
        assert_eq!(follow(65, false), Some(256 << 10));
        assert_eq!(follow(65, true), Some(256 << 10));
        assert_eq!(follow(64, true), None);
        assert_eq!(follow(513, true), Some(64 << 10));
        assert_eq!(follow(257, true), None);
        assert_eq!(follow(256, true), Some(256 << 10));
        assert_eq!(follow(32, true), Some(1 << 20));
    }
}
