// A page opened from a folder may not start a worker, so the search would hide. There, and only there, its
// script runs in a hidden frame that has a worker's interface.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        const start = () => {
          document.body.appendChild(frame);
          const inside = frame.contentWindow;
          // what the script posts comes back as a message of this worker
          inside.postReply = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          inside.started = () => resolve(inside);
          const address = encodeURI(decodeURI(new URL(url, location).href));
          inside.document.open();
          inside.document.write(
            `<script>deliver = window.dispatchEvent.bind(window); postMessage = postReply;</script>` +
              `<script src="${address}"></script><script>started();</script>`,
          );
          inside.document.close();
        };
        document.body ? start() : addEventListener("DOMContentLoaded", start);
      });
    }

    postMessage(data) {
      this.ready.then((inside) => inside.deliver(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
}
