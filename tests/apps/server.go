// A net/http server of the usual kind: system calls without libc. It knows nothing of rsup.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "{\"pid\":%d,\"version\":%q}\n", os.Getpid(), os.Getenv("APP_VERSION"))
	})
	if metrics := os.Getenv("METRICS"); metrics != "" {
		listener, err := net.Listen("tcp", ":"+metrics)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go http.Serve(listener, nil)
	}
	server := &http.Server{Addr: ":" + os.Getenv("PORT")}
	done := make(chan struct{})
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		server.Shutdown(context.Background())
		close(done)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-done
}
