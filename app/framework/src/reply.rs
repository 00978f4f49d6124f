use std::future::Future;

use futures_channel::oneshot;

/// A callback for another thread, and the future of what it will be called with. The future gives
/// `None` if the callback was dropped, as it is when its reactor has stopped.
pub fn reply<T: Send + 'static>() -> (
    Box<dyn FnOnce(T) + Send>,
    impl Future<Output = Option<T>> + use<T>,
) {
    let (sender, receiver) = oneshot::channel();
    // Whoever asked may have lost interest.
    let callback = Box::new(move |value| drop(sender.send(value)));
    (callback, async { receiver.await.ok() })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_future_ends_when_the_callback_is_called_or_dropped() {
        let (callback, mut answer) = pair();
        assert_eq!(answer.as_mut().now_or_never(), None);
        callback(7);
        assert_eq!(answer.now_or_never(), Some(Some(7)));

        let (callback, answer) = pair();
        drop(callback);
        assert_eq!(answer.now_or_never(), Some(None));
    }

    type Pair = (
        Box<dyn FnOnce(u8) + Send>,
        std::pin::Pin<Box<dyn Future<Output = Option<u8>>>>,
    );

    fn pair() -> Pair {
        let (callback, answer) = reply();
        (callback, Box::pin(answer))
    }
}
